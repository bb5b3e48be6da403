"""What is fetched from a hub, whose answers are not trusted."""
