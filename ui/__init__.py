"""The page: talks HTTP to the service, and imports neither it nor the controller."""
