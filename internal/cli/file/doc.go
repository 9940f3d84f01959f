// Package file reads and writes the files that people carry between commands: certificates, requests and CRLs, in PEM
// or DER. It never overwrites a file.
package file
