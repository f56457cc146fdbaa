"""Several guards on several suites: one table, with intervals, pairs and what could not be measured."""
