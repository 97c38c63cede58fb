"""The parts of a run's page: each turns a record into what the template shows and the scripts draw."""
