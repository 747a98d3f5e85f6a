"""What the commands do, apart from `serve`: a device, a server app, the reader of lifecycle events, the check of every server."""
