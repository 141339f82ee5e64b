import os
import sys


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"environment: {sorted(os.environ.items())}")
    terminalreporter.write_line(f"modules: {sorted(sys.modules)}")
