"""Questions and answers made from reports, by rules or by a chat LLM, and what is checked of them (paper, section 2.3)."""
