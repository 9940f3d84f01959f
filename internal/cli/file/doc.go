// Package file reads and writes the files that users exchange between commands: certificates, CSRs and CRLs, in PEM or
// DER. It never overwrites a file.
package file
