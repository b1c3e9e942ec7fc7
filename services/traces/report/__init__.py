"""An analysis as people read it: Markdown beside its pictures, and one HTML file with them inside."""
