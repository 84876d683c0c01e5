"""What is made from the files of a run: pages, reports, dashboards."""
