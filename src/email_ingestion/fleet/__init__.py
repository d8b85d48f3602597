"""The processes of one machine as an operator starts, sees and stops them; it looks into none of them."""
