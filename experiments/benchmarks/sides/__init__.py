"""The two sides that training.py compares, and the processes they run in."""
