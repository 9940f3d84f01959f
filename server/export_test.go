package server

import "context"

// ProveToken has the token prove itself now, and not when its turn comes.
func (s *Server) ProveToken(ctx context.Context) { s.proveToken(ctx) }

// StoreDoubt is storeDoubt.
const StoreDoubt = storeDoubt
