"""Input and output of a job: the services and the engines behind them."""
