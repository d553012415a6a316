"""What benchmarks, fault-injection tests and tests share."""
