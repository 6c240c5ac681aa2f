"""The HTTP API and the page: `serve.http.app.create_app`."""
