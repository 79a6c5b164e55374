"""What stagger costs and keeps, measured: a folder for each question; see README.md."""
