// Package retention removes the records of expired certificates and tokens from a store, at a pace that leaves the store's
// writer to issuing. A [Sweeper] takes one step after the other. It refuses a retention shorter than [Minimum].
package retention
