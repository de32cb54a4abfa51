"""What answers each route: parse, call one verb, answer."""
