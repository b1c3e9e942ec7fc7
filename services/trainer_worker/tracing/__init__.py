"""Jobs of kind `trace`: prompts are answered, and the experts that every token went through are recorded."""
