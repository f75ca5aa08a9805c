"""The report: figures, comparisons and one self-contained page from the files under reports/."""
