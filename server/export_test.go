package server

import "context"

// ProveToken has the tokens prove themselves now, and not when their turn comes.
func (s *Server) ProveToken(ctx context.Context) {
	for _, t := range s.tokens {
		s.proveToken(ctx, t)
	}
}

// OrdersUnderWay is how many orders of all streams are being carried out.
func (s *Server) OrdersUnderWay() int { return len(s.bulk.places) }

// MaxProbes is maxProbes.
const MaxProbes = maxProbes

// StoreDoubt is storeDoubt.
const StoreDoubt = storeDoubt
