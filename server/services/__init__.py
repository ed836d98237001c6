"""The gRPC services: thin shells around the engine, on two listeners, behind one edge that translates errors."""
