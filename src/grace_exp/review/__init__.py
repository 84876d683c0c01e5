"""Pages, reports and dashboards made from the files of a run."""
