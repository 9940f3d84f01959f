// Package output prints the records of a command as a table or as JSON lines, as --output says.
package output
