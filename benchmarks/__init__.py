"""What the framework costs and what it saves: ratios measured inside one run."""
