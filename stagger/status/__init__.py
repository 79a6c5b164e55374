"""Where a run stands, and why ranks failed, from records and one question to what runs it. Changes nothing."""
