"""The images: which files of a data set are what, and how one becomes an array."""
