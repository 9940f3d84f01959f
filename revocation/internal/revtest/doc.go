// Package revtest contains the code that the tests of revocation and its subpackages share: CAs, programs that check
// CRLs and responses, and [Book], a store in memory.
package revtest
