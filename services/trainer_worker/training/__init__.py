"""What jobs train. Imported only inside a job: these modules load torch."""
