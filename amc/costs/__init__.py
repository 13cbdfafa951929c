"""What a policy costs: numbers computed from shapes alone, and budgets on them."""
