"""What PaDiM learns from: image folders in MVTec AD's layout."""
