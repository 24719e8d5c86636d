"""The OpenAPI document of the HTTP API, made from its routes, and the page that shows it."""
