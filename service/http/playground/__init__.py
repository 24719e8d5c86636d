"""The playground: a page on which people draw digits and see what the model makes of them."""
