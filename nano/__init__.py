"""CogVideoX-nano: a toy-sized CogVideoX of our own that paints coloured shapes, and the world it learned from."""
