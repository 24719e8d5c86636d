"""mnist-predict: pictures in, digits out."""
