"""engine=local: the stages in long-lived worker processes of this machine, as many as its cores keep busy."""
