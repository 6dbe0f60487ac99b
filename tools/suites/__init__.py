"""CPython's own network tests, natively and under AppSwitch, compared test by test: `make suites`."""
