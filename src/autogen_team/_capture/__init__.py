"""What the job says to MLflow: caught at MLflow's front, checked, masked, and written to the journal."""
