// Package retention removes the records of expired certificates and tokens from a store, slowly enough to leave the
// store's writer to issuing. Old log entries leave the store too. A [Sweeper] works in small steps. It refuses a retention shorter than [Minimum].
package retention
