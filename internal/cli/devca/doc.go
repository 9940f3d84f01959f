// Package devca makes and opens a development CA: SoftHSM token, root, issuing CA, store and an operator's credential in
// one directory. It never touches the user's own SoftHSM configuration.
package devca
