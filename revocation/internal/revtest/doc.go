// Package revtest holds what the tests of revocation and its subpackages share: CAs for one test, programs that check
// our CRLs and responses, and [Book], a store in memory.
package revtest
