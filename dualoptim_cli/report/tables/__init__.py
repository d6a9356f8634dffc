"""What stands on the screen, as tables of rich. Returned, never printed."""
