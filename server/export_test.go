package server

import "context"

// ProveToken has the token prove itself now, and not when its turn comes.
func (s *Server) ProveToken(ctx context.Context) { s.proveToken(ctx) }

// OrdersUnderWay is how many orders of all streams are being carried out.
func (s *Server) OrdersUnderWay() int { return len(s.bulk.places) }

// MaxProbes is maxProbes.
const MaxProbes = maxProbes

// StoreDoubt is storeDoubt.
const StoreDoubt = storeDoubt
