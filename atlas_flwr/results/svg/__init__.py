"""Pictures of the report, as SVG inside the page."""
