"""HTTP/1.1 of our own: bytes in, requests for the front out (docs/decisions/http-front.md)."""
