"""HTTP/2 on the HTTP port: the library h2 between a transport and the front."""
