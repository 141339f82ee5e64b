"""The database of the application's reports."""


async def find_report_token(report_id: str) -> str:
    return f"token-of-{report_id}"
