"""The parts of the experiment in main.py."""
