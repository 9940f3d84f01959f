// Package revtest is what the tests of revocation and the packages below it share: throwaway CAs, the programs that
// judge our CRLs and responses, and a Book, the records of revocation in memory.
package revtest
