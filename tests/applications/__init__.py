"""Applications that the tests have gunicorn serve."""
