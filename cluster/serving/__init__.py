"""A checkpoint behind HTTP: engine replicas on Ray Serve, the API in front of them, the page."""
