"""What a node does because there are others: membership, parcels between nodes, and who listens elsewhere (design section 5). With an
embedded store none of it runs."""
