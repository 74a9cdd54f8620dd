"""What a run leaves in its folder: numbers, tables, figures and the page that shows them."""
